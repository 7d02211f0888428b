"""Usages of transformers' configuration and processors: code, and what holds of `out` after it.

The names in the code are those of `namespace` in test_usages.py. A `Refused` usage raises an error that says these words.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Refused:
    """A usage that is refused by name: the words of its error."""

    words: str


CONFIG = [
    ("out = VideoLlavaConfig()", "out.model_type == 'video_llava' and out.text_config.model_type == 'llama'"),
    (
        "out = VideoLlavaConfig(CLIPVisionConfig(), LlamaConfig())",
        "out.vision_config.model_type == 'clip_vision_model'",
    ),
    (
        "out = VideoLlavaConfig(CLIPVisionConfig(hidden_size=64, num_attention_heads=2), LlamaConfig(hidden_size=32))",
        "(out.vision_config.hidden_size, out.text_config.hidden_size) == (64, 32)",
    ),
    (
        "out = VideoLlavaConfig(vision_config=CLIPVisionConfig(), text_config=LlamaConfig())",
        "out.image_seq_length == 256",
    ),
    (
        "out = VideoLlavaConfig({'model_type': 'clip_vision_model', 'hidden_size': 96}, {'model_type': 'llama'})",
        "out.vision_config.hidden_size == 96",
    ),
    ("out = VideoLlavaConfig(None, None, 90, 91)", "(out.image_token_index, out.video_token_index) == (90, 91)"),
    ("out = VideoLlavaConfig(image_token_index=90)", "out.image_token_id == 90"),
    ("out = VideoLlavaConfig(); out.video_token_id = 7", "out.video_token_index == 7"),
    ("out = VideoLlavaConfig(projector_hidden_act='relu', vision_feature_layer=-1)", "out.vision_feature_layer == -1"),
    ("out = VideoLlavaConfig(vision_feature_layer=[-2, -1])", "out.vision_feature_layer == [-2, -1]"),
    ("out = VideoLlavaConfig(vision_feature_select_strategy='full')", "out.vision_feature_select_strategy == 'full'"),
    (
        "out = VideoLlavaConfig().to_dict()",
        "out['video_seq_length'] == 2056 and out['text_config']['model_type'] == 'llama'",
    ),
    ("out = VideoLlavaConfig.from_dict(VideoLlavaConfig(image_token_index=5).to_dict())", "out.image_token_index == 5"),
    (
        "out = VideoLlavaConfig.from_dict({'model_type': 'video_llava'}, image_token_index=6)",
        "out.image_token_index == 6",
    ),
    ("out = VideoLlavaConfig().to_json_string()", '\'"model_type": "video_llava"\' in out'),
    (
        "VideoLlavaConfig(image_token_index=5).save_pretrained(tmp); out = VideoLlavaConfig.from_pretrained(tmp)",
        "out.image_token_index == 5 and type(out) is VideoLlavaConfig",
    ),
    ("out = VideoLlavaConfig.from_pretrained(TINY)", "out.text_config.hidden_size > 0"),
    ("out = VideoLlavaConfig.from_pretrained(TINY, torch_dtype='float16')", "out.vision_config is not None"),
    ("out, rest = VideoLlavaConfig.from_pretrained(TINY, foo=1, return_unused_kwargs=True)", "rest == {'foo': 1}"),
    ("out = VideoLlavaConfig(variant='original', temporal_frames=4).to_dict()", "out['variant'] == 'original'"),
    (
        "out = to_model_config(VideoLlavaConfig(CLIPVisionConfig(hidden_act='gelu'), variant='original'))",
        "out.variant == 'original' and out.vision_config.hidden_act == 'gelu'",
    ),
    ("out = to_model_config(from_model_config(frozen))", "out == frozen"),
    ("out = copy.deepcopy(VideoLlavaConfig(image_token_index=5))", "out.image_token_index == 5"),
    ("out = VideoLlavaConfig(); out.update({'image_token_index': 3})", "out.image_token_index == 3"),
    ("out = VideoLlavaConfig().get_text_config()", "out.model_type == 'llama'"),
    ("out = repr(VideoLlavaConfig())", "out.startswith('VideoLlavaConfig {')"),
]

IMAGES = [
    (
        "out = VideoLlavaImageProcessor()(picture, return_tensors='np')",
        "out.pixel_values_images.shape == (1, 3, 224, 224)",
    ),
    (
        "out = VideoLlavaImageProcessor(do_resize=False, do_center_crop=False)(picture)",
        "out.pixel_values_images[0].shape == (3, 40, 50)",
    ),
    (
        "out = VideoLlavaImageProcessor()([picture, pil], return_tensors='np')",
        "out['pixel_values_images'].shape[0] == 2",
    ),
    (
        "out = VideoLlavaImageProcessor().preprocess(images=pil, size={'shortest_edge': 28}, crop_size=28, return_tensors='np')",
        "out.pixel_values_images.shape == (1, 3, 28, 28)",
    ),
    (
        "out = VideoLlavaImageProcessor()(images=None, videos=frames, return_tensors='np')",
        "out.pixel_values_videos.shape == (1, 8, 3, 224, 224) and 'pixel_values_images' not in out",
    ),
    ("out = VideoLlavaImageProcessor()(picture, return_legacy_image_output=False)", "list(out) == ['pixel_values']"),
    (
        "out = VideoLlavaImageProcessor()(picture.transpose(2, 0, 1), return_tensors='np')",
        "same(out.pixel_values_images, VideoLlavaImageProcessor()(picture, return_tensors='np').pixel_values_images)",
    ),
    (
        "out = VideoLlavaImageProcessor(size={'shortest_edge': 30}); out.save_pretrained(tmp)",
        "VideoLlavaImageProcessor.from_pretrained(tmp).size == {'shortest_edge': 30}",
    ),
    ("out = VideoLlavaImageProcessor.from_pretrained(TINY)", "out.crop_size == {'height': 56, 'width': 56}"),
    (
        "out = VideoLlavaImageProcessor().to_dict()",
        "out['do_resize'] and out['image_processor_type'] == 'VideoLlavaImageProcessor'",
    ),
    (
        "out = VideoLlavaImageProcessor(size=30, crop_size=28)",
        "out.size == {'shortest_edge': 30} and out.crop_size['height'] == 28",
    ),
    (
        "out = VideoLlavaImageProcessor()(photo, return_tensors='np')",
        "out.pixel_values_images.shape == (1, 3, 224, 224)",
    ),
    (
        "out = VideoLlavaImageProcessor()(data_url, return_tensors='np')",
        "same(out.pixel_values_images, VideoLlavaImageProcessor()(photo, return_tensors='np').pixel_values_images)",
    ),
    (
        "out = VideoLlavaImageProcessor()(picture, do_rescale=False, do_normalize=False)",
        "out.pixel_values_images[0].max() > 1",
    ),
    ("out = VideoLlavaImageProcessor().model_input_names", "out == ['pixel_values']"),
    (
        "out = VideoLlavaImageProcessor()(picture, data_format='channels_last')",
        "out.pixel_values_images[0].shape == (224, 224, 3)",
    ),
]

VIDEOS = [
    (
        "out = VideoLlavaVideoProcessor()(frames, return_tensors='np')",
        "out.pixel_values_videos.shape == (1, 8, 3, 224, 224)",
    ),
    (
        "out = VideoLlavaVideoProcessor()([frames, frames], return_tensors='np')",
        "out.pixel_values_videos.shape[0] == 2",
    ),
    (
        "out = VideoLlavaVideoProcessor()(list(frames), return_tensors='np')",
        "out.pixel_values_videos.shape[:2] == (1, 8)",
    ),
    ("out = VideoLlavaVideoProcessor()([pil] * 3, return_tensors='np')", "out.pixel_values_videos.shape[:2] == (1, 3)"),
    (
        "out = VideoLlavaVideoProcessor()(frames.transpose(0, 3, 1, 2), return_tensors='np')",
        "same(out.pixel_values_videos, VideoLlavaVideoProcessor()(frames, return_tensors='np').pixel_values_videos)",
    ),
    (
        "out = VideoLlavaVideoProcessor(do_resize=False, do_center_crop=False)(frames)",
        "out.pixel_values_videos[0].shape == (8, 3, 40, 50)",
    ),
    (
        "out = VideoLlavaVideoProcessor()(clip, do_sample_frames=True, num_frames=4, return_tensors='np')",
        "out.pixel_values_videos.shape[1] == 4",
    ),
    (
        "out = VideoLlavaVideoProcessor()(frames, do_sample_frames=True, num_frames=4)",
        "len(out.pixel_values_videos[0]) == 4",
    ),
    (
        "out = VideoLlavaVideoProcessor()(frames, do_sample_frames=True, fps=1, video_metadata={'fps': 4, 'total_num_frames': 8})",
        "len(out.pixel_values_videos[0]) == 2",
    ),
    (
        "out = VideoLlavaVideoProcessor(num_frames=2, do_sample_frames=True)(frames)",
        "len(out.pixel_values_videos[0]) == 2",
    ),
    (
        "out = VideoLlavaVideoProcessor()(clip, return_metadata=True)",
        "out['video_metadata'][0].total_num_frames == len(out.pixel_values_videos[0])",
    ),
    (
        "out = VideoLlavaVideoProcessor()(clip, do_sample_frames=True, num_frames=4, return_metadata=True)['video_metadata'][0]",
        "len(out.frames_indices) == 4 and out.fps > 0 and out['video_backend'] == 'pyav'",
    ),
    (
        "out = VideoLlavaVideoProcessor(size={'shortest_edge': 30}); out.save_pretrained(tmp)",
        "VideoLlavaVideoProcessor.from_pretrained(tmp).size['shortest_edge'] == 30",
    ),
    (
        "out = VideoLlavaVideoProcessor.from_pretrained(TINY)(frames)",
        "out.pixel_values_videos[0].shape == (8, 3, 56, 56)",
    ),
    ("out = VideoLlavaVideoProcessor().to_dict()", "out['video_processor_type'] == 'VideoLlavaVideoProcessor'"),
    ("out = VideoLlavaVideoProcessor()(frame_files)", "len(out.pixel_values_videos[0]) == 3"),
]

LOADING = [
    ("out = VideoLlavaProcessor.from_pretrained(TINY, use_fast=True)", "out.image_token == '<image>'"),
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, revision='main', token=None, cache_dir='/nowhere', local_files_only=True)",
        "out.video_token_id == p.video_token_id",
    ),
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, trust_remote_code=False, force_download=False)",
        "out.patch_size == p.patch_size",
    ),
    ("out = VideoLlavaProcessor.from_pretrained(TINY, padding_side='right')", "out.tokenizer.padding_side == 'right'"),
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, do_normalize=False)(images=picture)",
        "out.pixel_values_images.max() <= 1",
    ),
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, patch_size=28, vision_feature_select_strategy='full')",
        "out.tokens_per_image == 5",
    ),
    ("out = VideoLlavaProcessor.from_pretrained(TINY, chat_template='{{ x }}')", "out.chat_template == '{{ x }}'"),
    (
        "out = VideoLlavaProcessor(image_processor=VideoLlavaImageProcessor(), video_processor=VideoLlavaVideoProcessor(), tokenizer=p.tokenizer)",
        "out.tokens_per_frame == 257",
    ),
    (
        "out = VideoLlavaProcessor(VideoLlavaImageProcessor(crop_size=28), tokenizer=p.tokenizer)",
        "out.tokens_per_image == 4",
    ),
    (
        "p.save_pretrained(tmp); out = VideoLlavaProcessor.from_pretrained(tmp)",
        "same(out(PROMPT, videos=frames), p(PROMPT, videos=frames))",
    ),
    (
        "VideoLlavaConfig.from_pretrained(TINY).save_pretrained(tmp); p.save_pretrained(tmp, push_to_hub=False); out = sorted(os.listdir(tmp))",
        "{'config.json', 'processor_config.json', 'tokenizer.json', 'chat_template.jinja'} <= set(out)",
    ),
    (
        "p.image_processor.do_normalize = False; p.save_pretrained(tmp); out = VideoLlavaProcessor.from_pretrained(tmp)",
        "out.image_processor.do_normalize is False",
    ),
    (
        "p.chat_template = '{{ mine }}'; p.save_pretrained(tmp); out = VideoLlavaProcessor.from_pretrained(tmp)",
        "out.chat_template == '{{ mine }}'",
    ),
    ("out = p.to_dict()", "out['processor_class'] == 'VideoLlavaProcessor'"),
    ("out = repr(p)", "out.startswith('VideoLlavaProcessor')"),
    ("out = p.model_input_names", "out[:2] == ['input_ids', 'attention_mask']"),
    ("out = (p.image_token, p.video_token)", "out == ('<image>', '<video>')"),
    ("out = p.tokenizer.convert_tokens_to_ids('<image>')", "out == p.image_token_id"),
    ("out = AutoProcessor.from_pretrained(TINY)", "type(out) is VideoLlavaProcessor"),
    (
        "out = AutoProcessor.from_pretrained(TINY, use_fast=False, trust_remote_code=True)",
        "out.image_token == '<image>'",
    ),
    ("out = AutoConfig.from_pretrained(TINY)", "type(out) is VideoLlavaConfig"),
    ("out = callable(p.push_to_hub)", "out"),
]

CALLS = [
    (
        "out = p(text=PROMPT, videos=frames, return_tensors='np')",
        "out.input_ids.shape[0] == 1 and out.pixel_values_videos.shape[1] == 8",
    ),
    ("out = p(None, PROMPT, frames)", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(PROMPT, None, frames)", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(picture, ASK)", "same(out, p(text=ASK, images=picture))"),
    ("out = p(ASK, picture)", "same(out, p(text=ASK, images=picture))"),
    ("out = p(photo, ASK)", "same(out, p(text=ASK, images=photo))"),
    ("out = p(ASK, photo)", "same(out, p(text=ASK, images=photo))"),
    ("out = p('Hello')", "'pixel_values_images' not in out"),
    ("out = p(text=['Hello', 'Hello there'], padding=True)", "out.attention_mask.sum() < out.attention_mask.size"),
    ("out = p(images=picture)", "list(out) == ['pixel_values_images']"),
    ("out = p(images=[picture, pil, photo])", "out.pixel_values_images.shape[0] == 3"),
    ("out = p(videos=frames)", "list(out) == ['pixel_values_videos']"),
    ("out = p(text=PROMPT, videos=[frames])", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(text=PROMPT, videos=[[frames]])", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(text=PROMPT, videos=list(frames))", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(text=PROMPT, videos=[Image.fromarray(f) for f in frames])", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(text=PROMPT, videos=frames.transpose(0, 3, 1, 2))", "same(out, p(text=PROMPT, videos=frames))"),
    (
        "out = p(text=PROMPT, videos=frames.transpose(0, 3, 1, 2), input_data_format='channels_first')",
        "same(out, p(text=PROMPT, videos=frames))",
    ),
    ("out = p(text=PROMPT, videos=Tensor(frames))", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(text=PROMPT, videos=jnp.asarray(frames))", "same(out, p(text=PROMPT, videos=frames))"),
    ("out = p(text=ASK, images=Tensor(picture.transpose(2, 0, 1)))", "same(out, p(text=ASK, images=picture))"),
    (
        "out = p(text=ASK, images=(picture / 255).astype(np.float32), do_rescale=False)",
        "np.abs(out.pixel_values_images - p(text=ASK, images=picture).pixel_values_images).max() < 0.05",
    ),
    (
        "out = p(text=ASK, images=picture.astype(np.float32))",
        "np.abs(out.pixel_values_images - p(text=ASK, images=picture).pixel_values_images).max() < 0.05",
    ),
    ("out = p(text=ASK, images='file://' + photo)", "same(out, p(text=ASK, images=photo))"),
    ("out = p(text=ASK, images=data_url)", "same(out, p(text=ASK, images=photo))"),
    ("out = p(text=ASK, images=data_url.partition(',')[2])", "same(out, p(text=ASK, images=photo))"),
    ("out = p(text=ASK, images=pathlib.Path(photo).read_bytes())", "same(out, p(text=ASK, images=photo))"),
    ("out = p(text=PROMPT, videos=frame_files)", "out.pixel_values_videos.shape[1] == 3"),
    ("out = p(text=PROMPT, videos=[frame_files])", "out.pixel_values_videos.shape[1] == 3"),
    ("out = p(text=PROMPT, videos=clip)", "out.pixel_values_videos.shape[1] == 8"),
    ("out = p(text=PROMPT, videos='file://' + clip)", "same(out, p(text=PROMPT, videos=clip))"),
    ("out = p(text=PROMPT, videos=video_url)", "same(out, p(text=PROMPT, videos=clip))"),
    ("out = p(text=PROMPT, videos=pathlib.Path(clip))", "same(out, p(text=PROMPT, videos=clip))"),
    ("out = p(text=PROMPT, videos=clip, num_frames=4)", "out.pixel_values_videos.shape[1] == 4"),
    (
        "out = p(text=PROMPT, videos=clip, do_sample_frames=True, num_frames=8)",
        "same(out, p(text=PROMPT, videos=clip))",
    ),
    ("out = p(text=PROMPT, videos=clip, do_sample_frames=True, fps=2)", "0 < out.pixel_values_videos.shape[1] < 20"),
    (
        "out = p(text=PROMPT, videos=clip, do_sample_frames=False, max_new_tokens=0)",
        "out.pixel_values_videos.shape[1] == total",
    ),
    (
        "out = p(text=PROMPT, videos=frames, do_sample_frames=True, num_frames=4)",
        "same(out, p(text=PROMPT, videos=frames[::2]))",
    ),
    (
        "out = p(text=PROMPT, videos=frames, num_frames=8, do_sample_frames=False)",
        "same(out, p(text=PROMPT, videos=frames))",
    ),
    (
        "out = p(text=PROMPT, videos=frames, do_sample_frames=True, fps=1, video_metadata=[{'fps': 4, 'total_num_frames': 8}])",
        "out.pixel_values_videos.shape[1] == 2",
    ),
    ("out = p(text=PROMPT, videos=clip, return_metadata=True)", "len(out['video_metadata'][0].frames_indices) == 8"),
    (
        "out = p(text=['<image> a', '<video> b'], images=picture, videos=frames, padding=True)",
        "out.input_ids.shape[0] == 2",
    ),
    ("out = p(text=['<image> a', 'b'], images=[[picture], []], padding=True)", "out.pixel_values_images.shape[0] == 1"),
]

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
]

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
]

REFUSALS = [
    ("p(text=ASK, images='https://example.org/a.png')", Refused("allow_remote_media=True")),
    ("p(text=PROMPT)", Refused("1 <video>")),
    ("p(text='a', audio=np.zeros(9))", Refused("takes no sound")),
    ("p(text='a', text_pair='b')", Refused("one prompt")),
    ("p(text='a', paddding=True)", Refused("did you mean 'padding'")),
    ("p(text='a', padding=True, text_kwargs={'padding': False})", Refused("padding was passed two times")),
    ("p(text='a', return_tensors='tf')", Refused("expected 'np'")),
    ("p.apply_chat_template(TALK, tools=[{'name': 'f'}])", Refused("does not show them")),
    ("VideoLlavaProcessor.from_pretrained(TINY, foo=1)", Refused("unknown argument 'foo'")),
    ("VideoLlavaConfig(None, None, 1, image_token_index=2)", Refused("given twice")),
]

USAGES = [*CONFIG, *IMAGES, *VIDEOS, *LOADING, *CALLS, *ARGUMENTS, *CHAT, *REFUSALS]
