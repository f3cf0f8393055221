"""pgherald turns what Postgres finds due into exactly one push through Firebase Cloud Messaging, and one record.

The map of the program is `service`; the commands are in `cli`; what a word means is in sql/README.md.
"""
