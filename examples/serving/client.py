"""Ask a running ``lyrics serve`` about an image: python client.py scene.png "Where is the diamond?" [ADDRESS]"""

import base64
import mimetypes
import sys
from pathlib import Path

from openai import OpenAI

image, question, address = (*sys.argv[1:], "http://127.0.0.1:8000")[:3]
data = base64.b64encode(Path(image).read_bytes()).decode()
url = f"data:{mimetypes.guess_type(image)[0]};base64,{data}"
content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
client = OpenAI(base_url=f"{address}/v1", api_key="any")
reply = client.chat.completions.create(model="lyrics-tiny", messages=[{"role": "user", "content": content}])
print(reply.lyrics["plain_text"])
for found in reply.lyrics["objects"]:
    print(found["tag"], found["box_px"], f"score {found['score']}" if found["supported"] else "not seen by the refiner")
