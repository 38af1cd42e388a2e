"""What the packed engine is measured against, and how."""
