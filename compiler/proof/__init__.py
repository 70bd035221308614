"""What is checked before anything is compiled: the template's masks, and the encoder's ids."""
