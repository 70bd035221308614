"""What is proven before anything is compiled: that the masks of a template are right, and the ids of an encoder.

- probes, laws: the conversations that are tried, and how a law is checked
- template, documents: the certificate of a chat template, and of text without one
- certificate: that certificate, kept in the cache
- encoders: the choice of the encoder, and the proof that its ids are those of the reference
"""
