"""From a row's columns to token ids: templates, questions, chats, tokenizing, splitting, schemas; no weights."""
