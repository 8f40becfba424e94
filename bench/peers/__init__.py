"""The four ways of the textbook to sell from one stock, on real servers, each as fast as its way allows,
and TigerBeetle, against Holdfast's engine: the same buyers, one hot sku, every unit durable, one hold
written for each.

``figures`` measures all of them in turn. Where a way loses a unit or sells one too often,
``bench.peers.weaknesses`` shows it.
"""

from bench.peers.comparison import figures

__all__ = ["figures"]
