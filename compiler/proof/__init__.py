"""Step 3, encode: what is proven before any row is encoded, that the template's masks and the encoder's ids are right.

probes -> compiled as rows are = official text and ids ?  -> certificate
awkward texts -> fast encoder  = reference encoder ?      -> choice

probes.py       the conversations that a template is tried with
laws.py         how a law is checked
template.py     the certificate of a chat template
documents.py    the certificate of documents, which have no chat template
certificate.py  that certificate, kept in the cache
encoders.py     the choice of the encoder and its proof
"""
