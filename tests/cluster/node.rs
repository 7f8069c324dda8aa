//! A node: its files, its command lines, and how its container runtime gets images.
