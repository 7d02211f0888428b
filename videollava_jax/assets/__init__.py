"""The files that come with the package, and the drawn world that they are from."""
