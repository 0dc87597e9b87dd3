"""Files of an untrusted folder, and weights files in and out."""
