"""prompts x roles x samples -> the teacher -> a dataset."""
