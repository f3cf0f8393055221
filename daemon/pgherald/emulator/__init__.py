"""A local FCM v1 and OAuth token endpoint that checks what it is sent, and can be told to fail.

The Firebase emulators have none for Cloud Messaging. Official SDKs and google-auth work against this one, over HTTP/1.1
and HTTP/2, in clear text and over TLS.

`service` composes it, in this process or for a command (`cli`); `server`, `link`, `http1` and `http2` are the wire;
`app` has the routes, `messages` FCM's rules, `oauth` the token endpoint, `answers` the bodies that Google sends,
`faults` what goes wrong on demand, `ledger` what was accepted, `keys` credentials and certificate, `client` a way in
for the demo and tests.
Only the demo and tests may import this package; its dependencies are those of the extra `demo`, which `cli` and
`client` do without until they start one. In a program: `async with service.Emulator.start() as emulator`.
"""
