"""Video files in and out: readers, samplers, transforms, writer. The only room that touches a decoder."""
