"""A dataset -> LoRA students -> a verdict against the teacher."""
