"""From a prompt to an answer: next tokens, compiled steps, options, text, conversations."""
