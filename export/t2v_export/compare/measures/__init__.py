"""Single measures of a comparison."""
