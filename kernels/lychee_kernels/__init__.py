"""The ops of hybrid-head decoding: definitions in torch, fast implementations per device."""
