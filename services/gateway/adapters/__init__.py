"""The gateway's ends outside its own logic: tokens, live subscriptions, upload forms, blobs as files."""
