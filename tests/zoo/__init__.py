"""Every architecture that the installed transformers has for texts, tiny and random, held to transformers itself."""
