"""Usages of `apply_chat_template`."""

CHAT = [
    ("out = p.apply_chat_template(TALK)", "out == 'USER: <video>\\nWhat? '"),
    ("out = p.apply_chat_template(TALK, add_generation_prompt=True)", "out == 'USER: <video>\\nWhat? ASSISTANT:'"),
    (
        "out = p.apply_chat_template([TALK, TALK], add_generation_prompt=True)",
        "out == ['USER: <video>\\nWhat? ASSISTANT:'] * 2",
    ),
    ("out = p.apply_chat_template(ANSWERED)", "'ASSISTANT: A shape.' in out"),
    ("out = p.apply_chat_template(TALK, tokenize=True)", "out.shape[0] == 1"),
    (
        "out = p.apply_chat_template(TALK, tokenize=True, return_dict=True)",
        "set(out) == {'input_ids', 'attention_mask', 'pixel_values_videos'}",
    ),
    (
        "out = p.apply_chat_template(TALK, add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors='np')",
        "same(out, p(text='USER: <video>\\nWhat? ASSISTANT:', videos=clip))",
    ),
    (
        "out = p.apply_chat_template(TALK, tokenize=True, return_dict=True, num_frames=4)",
        "out.pixel_values_videos.shape[1] == 4",
    ),
    (
        "out = p.apply_chat_template(TALK, tokenize=True, return_dict=True, processor_kwargs={'num_frames': 4})",
        "out.pixel_values_videos.shape[1] == 4",
    ),
    (
        "out = p.apply_chat_template(TALK, tokenize=True, return_dict=True, video_fps=2, video_load_backend='pyav')",
        "0 < out.pixel_values_videos.shape[1] < 20",
    ),
    (
        "out = p.apply_chat_template(TALK, tokenize=True, return_dict=True, do_normalize=False)",
        "out.pixel_values_videos.max() <= 1",
    ),
    (
        "out = p.apply_chat_template(TALK, tokenize=True, return_dict=True, return_metadata=True)",
        "len(out['video_metadata']) == 1",
    ),
    (
        "out = p.apply_chat_template([SEEN, user('b')], tokenize=True, return_dict=True, padding=True)",
        "out.input_ids.shape[0] == 2",
    ),
    (
        "out = p.apply_chat_template(user({'type': 'image', 'url': data_url}, 'b'), tokenize=True, return_dict=True)",
        "out.pixel_values_images.shape[0] == 1",
    ),
    (
        "out = p.apply_chat_template(user({'type': 'image', 'base64': data_url.partition(',')[2]}, 'b'), tokenize=True, return_dict=True)",
        "out.pixel_values_images.shape[0] == 1",
    ),
    (
        "out = p.apply_chat_template(user({'type': 'image_url', 'image_url': {'url': 'file://' + photo}}, 'b'), tokenize=True, return_dict=True)",
        "out.pixel_values_images.shape[0] == 1",
    ),
    (
        "out = p.apply_chat_template(user({'type': 'video', 'video': frame_files}, 'b'), tokenize=True, return_dict=True)",
        "out.pixel_values_videos.shape[1] == 3",
    ),
    (
        "out = p.apply_chat_template(user({'type': 'video', 'video': frames}, 'b'), tokenize=True, return_dict=True, num_frames=4)",
        "out.pixel_values_videos.shape[1] == 4",
    ),
    (
        "out = p.apply_chat_template(user({'type': 'image', 'image': Tensor(picture)}, 'b'), tokenize=True, return_dict=True)",
        "out.pixel_values_images.shape[0] == 1",
    ),
    (
        "out = p.apply_chat_template(ANSWERED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)",
        "p.decode(out.input_ids[out['assistant_masks'] == 1]).strip().startswith('A shape.')",
    ),
    ("out = p.apply_chat_template(ANSWERED, continue_final_message=True)", "out.endswith('ASSISTANT: A shape.')"),
    (
        "out = p.apply_chat_template(ANSWERED, continue_final_message=True, tokenize=True)",
        "p.decode(out[0]).endswith('A shape.')",
    ),
    ("out = p.apply_chat_template(TALK, chat_template=JINJA, mark='!')", "out == 'user: <video>What?!'"),
    ("p.chat_template = JINJA; out = p.apply_chat_template(TALK)", "out == 'user: <video>What?'"),
    (
        "p.chat_template = JINJA; out = p.apply_chat_template(TALK, tokenize=True, return_dict=True, num_frames=2)",
        "out.pixel_values_videos.shape[1] == 2",
    ),
    (
        "p.chat_template = {'default': JINJA, 'loud': JINJA.upper()}; out = p.apply_chat_template(TALK)",
        "out == 'user: <video>What?'",
    ),
    (
        "p.chat_template = {'default': 'x', 'mine': JINJA}; out = p.apply_chat_template(TALK, chat_template='mine')",
        "out == 'user: <video>What?'",
    ),
    (
        "out = p.apply_chat_template(ANSWERED, chat_template=MARKED, tokenize=True, return_dict=True, return_assistant_tokens_mask=True)",
        "p.decode(out.input_ids[out['assistant_masks'] == 1]).strip().startswith('A shape.')",
    ),
    ("out = p.apply_chat_template(TALK, template='vicuna_v1')", "out.startswith('A chat between')"),
    ("out = p.apply_chat_template(user('Is <video> a tag?'), tokenize=True)", "(out != p.video_token_id).all()"),
    (
        "out = p.apply_chat_template(TALK, tools=None, documents=None, load_audio_from_video=False, sanitize_control_tokens=True)",
        "isinstance(out, str)",
    ),
    ("out = p.apply_chat_template(TALK, JINJA, tokenize=False)", "out == 'user: <video>What?'"),
    ("p.chat_template = None; out = p.apply_chat_template(TALK, chat_template=JINJA)", "out == 'user: <video>What?'"),
    (
        "with pytest.warns(UserWarning, match='does not show them'): out = p.apply_chat_template(TALK, tools=[{'name': 'f'}])",
        "out == p.apply_chat_template(TALK)",
    ),
    ("out = p.apply_chat_template(TALK, chat_template='{{ tools[0].name }}', tools=[{'name': 'f'}])", "out == 'f'"),
    (
        "out = p.apply_chat_template(TALK, chat_template='{{ documents[0].title }}', documents=[{'title': 'T', 'text': 'x'}])",
        "out == 'T'",
    ),
]
