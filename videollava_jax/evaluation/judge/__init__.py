"""A judge of free answers: any endpoint that speaks OpenAI's protocol, with its replies kept on disk."""
