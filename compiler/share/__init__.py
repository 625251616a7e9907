"""Folders that plain transformers reads as the dense model, and that topkast reads as the sparse model.

``sets_file`` writes and reads ``topkast.safetensors``. ``library_save`` extends ``save_pretrained``, and ``card``
writes the model card. ``from_pretrained`` makes a sparse model from a folder, with ``use_sets``. ``resume`` lets
Trainer resume from a folder, and ``trainer_hub`` completes the folders that Trainer uploads.
"""
