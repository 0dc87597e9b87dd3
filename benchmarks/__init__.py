"""Side-by-side measurements on one machine; see README.md here."""
