"""The reader of compiled programs: their text as objects, their memory traffic, their copies."""
