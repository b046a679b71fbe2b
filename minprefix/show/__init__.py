"""Pictures: of a training (`training`) and of attention (`attention`), as PNG or SVG."""
