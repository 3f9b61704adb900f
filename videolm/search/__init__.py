"""From a folder of videos to shards of vectors, and from the shards to an index that can be searched.

Knows no model: what turns a file into a vector is given as an argument.
"""
