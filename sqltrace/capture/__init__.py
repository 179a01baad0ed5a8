"""Everything that touches SQLAlchemy. Begin with `engine`, the hot path."""
