"""Data: sources, tokenizers, and the pipeline that makes batches."""

from shared_tfm.data.pipeline import Batch, Dataset

__all__ = ['Batch', 'Dataset']
