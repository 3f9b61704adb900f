"""Token-wise similarity of texts and videos; see README.md in this folder."""
