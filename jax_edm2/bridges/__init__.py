"""The same network as other projects know it: their classes, arguments and call signatures over our modules."""
