"""Usages of the processor's call: its arguments, and what its result does."""

ARGUMENTS = [
    ("out = p(text=PROMPT, videos=frames, padding='max_length', max_length=200)", "out.input_ids.shape == (1, 200)"),
    (
        "out = p(text=PROMPT, videos=frames, text_kwargs={'padding': 'max_length', 'max_length': 200})",
        "out.input_ids.shape == (1, 200)",
    ),
    (
        "out = p(text=['Hello', 'Hello there'], padding=True, padding_side='right')",
        "out.attention_mask[0, 0] == 1 and out.attention_mask[0, -1] == 0",
    ),
    ("out = p(text=['Hello', 'Hello there'], padding=True, padding_side='left')", "out.attention_mask[0, 0] == 0"),
    ("out = p(text='a', add_special_tokens=False)", "out.input_ids[0, 0] != p.tokenizer.bos_token_id"),
    (
        "out = p(text=PROMPT, videos=frames, add_special_tokens=False)",
        "out.input_ids.shape[1] == p(text=PROMPT, videos=frames).input_ids.shape[1] - 1",
    ),
    ("out = p(text='a', return_attention_mask=False)", "'attention_mask' not in out"),
    ("out = p(text='a', pad_to_multiple_of=16, padding=True)", "out.input_ids.shape[1] == 16"),
    ("out = p(text='a b c d', truncation=True, max_length=3)", "out.input_ids.shape[1] == 3"),
    ("out = p(text='a', return_length=True)", "'length' in out"),
    ("out = p(text='a', return_special_tokens_mask=True)", "out['special_tokens_mask'][0, 0] == 1"),
    ("out = p(text='a', return_offsets_mapping=True)", "'offset_mapping' in out"),
    (
        "out = p(text='a', return_token_type_ids=False, verbose=False, stride=0, is_split_into_words=False)",
        "list(out) == ['input_ids', 'attention_mask']",
    ),
    (
        "out = p(text=PROMPT, videos=frames, return_mm_token_type_ids=True)",
        "(out['mm_token_type_ids'] == 2).sum() == 8 * p.tokens_per_frame",
    ),
    (
        "out = p(text=ASK, images=picture, do_resize=False, do_center_crop=False)",
        "out.pixel_values_images.shape == (1, 3, 40, 50)",
    ),
    (
        "out = p(text=ASK, images=picture, images_kwargs={'size': {'shortest_edge': 28}, 'crop_size': {'height': 28, 'width': 28}})",
        "out.pixel_values_images.shape == (1, 3, 28, 28) and (out.input_ids == p.image_token_id).sum() == (28 // p.patch_size) ** 2",
    ),
    (
        "out = p(text=PROMPT, videos=frames, videos_kwargs={'crop_size': {'height': 28, 'width': 28}})",
        "out.pixel_values_videos.shape[-1] == 28",
    ),
    (
        "out = p(images=picture, do_normalize=False)",
        "0 <= out.pixel_values_images.min() and out.pixel_values_images.max() <= 1",
    ),
    ("out = p(images=picture, do_rescale=False, do_normalize=False)", "out.pixel_values_images.max() > 1"),
    (
        "out = p(images=picture, image_mean=[0.0, 0.0, 0.0], image_std=[1.0, 1.0, 1.0])",
        "np.allclose(out.pixel_values_images, p(images=picture, do_normalize=False).pixel_values_images)",
    ),
    ("out = p(images=picture, rescale_factor=1.0, do_normalize=False)", "out.pixel_values_images.max() > 1"),
    (
        "out = p(images=picture, do_resize=True, do_center_crop=True, do_convert_rgb=True)",
        "same(out, p(images=picture))",
    ),
    ("out = p(images=picture, size=p.image_processor.size, device='cuda')", "same(out, p(images=picture))"),
    ("p.image_processor.do_normalize = False; out = p(images=picture)", "out.pixel_values_images.max() <= 1"),
    (
        "p.image_processor.crop_size = {'height': 28, 'width': 28}; out = p(ASK, picture)",
        "out.pixel_values_images.shape[-1] == 28",
    ),
    ("out = p(text='a', common_kwargs={'return_tensors': 'np'})", "out.input_ids.shape[0] == 1"),
    ("out = p(text='a', processor_kwargs={'padding': 'max_length', 'max_length': 9})", "out.input_ids.shape == (1, 9)"),
    ("out = p(text=PROMPT, videos=clip, video_load_backend='decord')", "same(out, p(text=PROMPT, videos=clip))"),
    ("out = p(text='a', return_tensors=None)", "isinstance(out.input_ids[0], list)"),
    (
        "out = p(text=PROMPT, videos=frames, return_tensors='jax')",
        "isinstance(out.input_ids, jax.Array) and isinstance(out.pixel_values_videos, jax.Array)",
    ),
    ("out = p(text='a', audio=None, audio_kwargs={})", "'input_ids' in out"),
    ("out = p(text='a', num_frames=8, fps=None, images_kwargs={}, videos_kwargs=None or {})", "'input_ids' in out"),
    ("out = p(text=PROMPT, videos=frames).to('cuda')", "same(out, p(text=PROMPT, videos=frames))"),
    (
        "out = p(text=PROMPT, videos=frames).to('cuda', np.float16)",
        "out.pixel_values_videos.dtype == np.float16 and out.input_ids.dtype == np.int64",
    ),
    ("out = p(text=PROMPT, videos=frames).to(jnp.bfloat16)", "out.pixel_values_videos.dtype == jnp.bfloat16"),
    (
        "out = p(text=PROMPT, videos=frames).to(device=0, dtype=np.float32, non_blocking=True)",
        "out.pixel_values_videos.dtype == np.float32",
    ),
    (
        "out = p(text=PROMPT, videos=frames, return_tensors='jax').to(jax.devices()[0], jnp.float16)",
        "out['pixel_values_videos'].dtype == jnp.float16",
    ),
    ("out = dict(**p(text='a'))", "sorted(out) == ['attention_mask', 'input_ids']"),
    (
        "out = p.batch_decode(p(text='a b').input_ids, skip_special_tokens=True, clean_up_tokenization_spaces=True)",
        "out == ['a b']",
    ),
    ("out = p.decode(p(text='a b').input_ids[0], skip_special_tokens=True)", "out == 'a b'"),
    ("out = p.post_process_image_text_to_text(p(text='a b').input_ids)", "out == ['a b']"),
    ("out = p(text='a', text_pair='b')", "out.input_ids[0, -1] == p(text='b').input_ids[0, -1]"),
    ("out = p(text=['a', 'b c'], text_pair=['d', 'e'], padding=True)", "out.input_ids.shape[0] == 2"),
    ("out = p(text=PROMPT, videos=frames, text_target='A shape.')", "out['labels'].shape[0] == 1"),
    ("out = p(text='a b', return_overflowing_tokens=True)", "out['overflow_to_sample_mapping'].tolist() == [0]"),
    ("out = p(text=ASK, images=picture, do_pad=True, image_seq_length=576)", "same(out, p(text=ASK, images=picture))"),
    (
        "out = p(text=PROMPT, videos=frames, do_pad=True, pad_size={'height': 9, 'width': 9})",
        "same(out, p(text=PROMPT, videos=frames))",
    ),
    ("out = list(inspect.signature(p.__call__).parameters)", "out == ['images', 'text', 'videos', 'kwargs']"),
]
