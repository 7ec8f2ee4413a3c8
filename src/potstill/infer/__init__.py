"""The hybrid router: cache -> students -> decide -> store."""
