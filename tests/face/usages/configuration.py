"""Usages of `VideoLlavaConfig`."""

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
