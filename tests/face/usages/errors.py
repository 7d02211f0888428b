"""Usages that raise, with words of the error: what transformers does and we refuse, and what is wrong in both."""

REFUSED = [
    ("p(text=ASK, images='https://example.org/a.png')", "allow_remote_media=True"),
    ("p(text='a', audio=np.zeros(9))", "takes no sound"),
]
"""What transformers does, or takes and ignores: refused by name."""

MISTAKES = [
    ("p(text=PROMPT)", "1 <video>"),
    ("p(text=PROMPT, videos=[frames, frames])", "2 videos"),
    ("p()", "expected text, images or videos"),
    ("p(text='a', paddding=True)", "did you mean 'padding'"),
    ("p(text='a', padding=True, text_kwargs={'padding': False})", "padding was passed two times"),
    ("p(text='a', return_tensors='tf')", "expected 'np'"),
    ("p(text=['a', 'b'], is_split_into_words=True)", "join the words"),
    ("p(text='a b c d e', truncation=True, max_length=3, return_overflowing_tokens=True)", "disable truncation"),
    ("p(text='a', padding='max')", "padding"),
    ("VideoLlavaProcessor.from_pretrained(TINY, foo=1)", "unknown argument 'foo'"),
    ("VideoLlavaProcessor.from_pretrained(tmp)", "tmp"),
    ("p.chat_template = {'../../x': 'a'}; p.save_pretrained(tmp)", "names that files can have"),
    ("p.chat_template = {'mine': 'a'}; p.apply_chat_template(TALK)", 'none of them are named "default"'),
    ("VideoLlavaConfig(None, None, 1, image_token_index=2)", "given twice"),
]
"""What transformers refuses too, or would ignore as it is spelled wrong."""
