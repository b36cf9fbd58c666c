"""The photos of the index: a page of them, a file, a small copy. By id only: no path is ever taken."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import FileResponse, Response

from mmgem.errors import ImageError
from mmgem.serve import limits
from mmgem.serve.image_input import clip_media_type, media_type, photo_gone
from mmgem.serve.replies import json_reply
from mmgem.serve.routes import ERRORS, service_of
from mmgem.serve.schemas import PhotosReply

router = APIRouter(tags=["photos"], responses=ERRORS)

PhotoPath = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
_CACHE = {"Cache-Control": "private, max-age=300"}


@router.get("/photos", responses={200: {"model": PhotosReply}})
async def photos(
    request: Request,
    offset: Annotated[int, Query(ge=0)] = 0,
    limit: Annotated[int, Query(ge=1, le=limits.PAGE)] = 100,
) -> Response:
    """A page of the index, by name."""
    gallery = service_of(request).gallery
    ids = gallery.ids[offset : offset + limit]
    end = offset + len(ids)
    return json_reply(
        {
            "photos": [gallery.told(photo) for photo in ids],
            "total": len(gallery.ids),
            "offset": offset,
            "next": end if end < len(gallery.ids) else None,
            "generation": gallery.generation,
        }
    )


@router.get(
    "/photos/{photo}",
    responses={200: {"content": {"image/*": {}, "video/*": {}}}, 206: {"description": "A range of it."}},
    response_class=FileResponse,
)
async def photo_file(request: Request, photo: PhotoPath) -> Response:
    """The file of a photo; of a moment, the whole clip. A ``Range`` header is answered with that part."""
    service = service_of(request)
    gallery = service.gallery
    path = gallery.path(photo)
    try:
        if photo in gallery.moments:
            media = clip_media_type(path)
        else:
            media = await service.in_thread(media_type, await service.photo(None, photo))
        stat = await service.in_thread(path.stat)
    except (OSError, ImageError) as error:  # removed since it was looked at
        raise photo_gone(photo) from error
    return FileResponse(path, media_type=media, headers=_CACHE, stat_result=stat)


@router.get(
    "/photos/{photo}/thumb", responses={200: {"content": {"image/jpeg": {}}}}, response_class=Response
)
async def thumb(
    request: Request, photo: PhotoPath, side: Annotated[int, Query(ge=16, le=limits.THUMB)] = 256
) -> Response:
    """An upright JPEG whose longest side is at most ``side`` pixels; of a moment, its middle frame."""
    service = service_of(request)
    small = await service.thumb(await service.photo(None, photo), side)
    return Response(small, media_type="image/jpeg", headers=_CACHE)
