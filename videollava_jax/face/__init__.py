"""The classes that transformers' users know, over the core's: configuration, processors, their arguments."""
