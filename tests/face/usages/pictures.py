"""Usages of the image and the video processor by themselves."""

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
    (
        "out = VideoLlavaVideoProcessor()(np.concatenate([frames, frames[..., :1] * 0 + 255], -1), return_tensors='np')",
        "same(out, VideoLlavaVideoProcessor()(frames, return_tensors='np'))",
    ),
    (
        "out = VideoLlavaVideoProcessor()(np.concatenate([frames, frames[..., :1] * 0], -1), do_normalize=False)",
        "out.pixel_values_videos[0].min() == 1",
    ),
    (
        "out = VideoLlavaVideoProcessor()([pil.convert('RGBA')] * 3, return_tensors='np')",
        "same(out, VideoLlavaVideoProcessor()([pil] * 3, return_tensors='np'))",
    ),
    (
        "out = VideoLlavaVideoProcessor()([pil.convert('L')] * 3)",
        "out.pixel_values_videos[0].shape == (3, 3, 224, 224)",
    ),
    (
        "out = VideoLlavaVideoProcessor()(frames[..., :1].transpose(0, 3, 1, 2))",
        "out.pixel_values_videos[0].shape == (8, 3, 224, 224)",
    ),
]
