"""The comparison as a page that opens offline."""
