"""Sources: files of the field's formats, and what TFDS has prepared."""
