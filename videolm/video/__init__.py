"""Video files in, frames out: readers (one file a back end), samplers, transforms, and a writer."""
