"""Datasets made of pictures, as NVlabs' dataset_tool.py makes them: cropped and scaled, or encoded by a VAE.

report = convert(ConvertRequest(Path("flowers"), Path("flowers.zip"), transform="center-crop", resolution=(64, 64)))
report = encode(EncodeRequest(Path("flowers.zip"), Path("flowers-sd.zip"), vae="stabilityai/sd-vae-ft-mse"))
"""
