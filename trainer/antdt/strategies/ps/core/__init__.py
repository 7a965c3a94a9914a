"""In which order contributions come into the model, and what each server does at which point of that order: pure."""
