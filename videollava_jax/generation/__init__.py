"""From a prompt to an answer: the loaded model, its compiled steps, options, text, conversations."""
