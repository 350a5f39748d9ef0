"""One file per plug-in; the file name is the name."""
