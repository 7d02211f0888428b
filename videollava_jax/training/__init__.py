"""Fine-tuning: data in LLaVA's format, rows that are packed the same way on every host, the step and the loop."""
