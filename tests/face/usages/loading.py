"""Usages that load, make, save and describe a processor."""

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
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, image_processor=VideoLlavaImageProcessor(crop_size=28))",
        "out.tokens_per_image == 4 and out.tokens_per_frame == p.tokens_per_frame",
    ),
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, video_processor=p.video_processor, tokenizer=p.tokenizer)",
        "out.tokenizer is p.tokenizer and out.video_processor is p.video_processor",
    ),
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, cls_token='<c>', sep_token='</s>').tokenizer",
        "(out.cls_token, out.sep_token_id) == ('<c>', 2)",
    ),
    (
        "out = VideoLlavaProcessor.from_pretrained(TINY, pad_token='</s>')",
        "out(text=['a', 'a b'], padding=True).input_ids[0, 0] == 2",
    ),
    ("out = p.save_pretrained(tmp)", "out == [os.path.join(tmp, 'processor_config.json')] and os.path.isfile(out[0])"),
    (
        "p.chat_template = {'default': 'a', 'mine': 'b'}; p.save_pretrained(tmp); out = VideoLlavaProcessor.from_pretrained(tmp)",
        "out.chat_template == out.tokenizer.chat_template == p.chat_template",
    ),
    (
        "p.chat_template = {'mine': 'b'}; p.save_pretrained(tmp); out = VideoLlavaProcessor.from_pretrained(tmp)",
        "out.apply_chat_template(TALK, chat_template='mine') == 'b'",
    ),
]
