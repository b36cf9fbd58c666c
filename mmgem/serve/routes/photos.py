"""The photos of the index: a page of them, a file, a small copy, what is known of one. By id only: no path is
ever taken."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path, Query, Request
from starlette.responses import FileResponse, Response

from mmgem.errors import ImageError
from mmgem.search.index_metadata import wall_time
from mmgem.serve import limits
from mmgem.serve.errors import APIError
from mmgem.serve.image_input import clip_media_type, media_type, photo_gone
from mmgem.serve.replies import json_reply
from mmgem.serve.reveal import reveal
from mmgem.serve.routes import ERRORS, service_of
from mmgem.serve.schemas import FilterValues, PhotoInfo, PhotosQuery, PhotosReply, Status

router = APIRouter(tags=["photos"], responses=ERRORS)

PhotoPath = Annotated[str, Path(pattern="^[0-9a-f]{16}$")]
_KNOWN = ("camera", "latitude", "longitude", "width", "height", "bytes")
_CACHE = {"Cache-Control": "private, max-age=300"}


@router.get("/photos", responses={200: {"model": PhotosReply}})
async def photos(request: Request, query: Annotated[PhotosQuery, Query()]) -> Response:
    """A page of the index, by name; of what passes the filters."""
    service = service_of(request)
    gallery = await service.in_thread(service.gallery.filtered, query.filters)
    ids = gallery.ids[query.offset : query.offset + query.limit]
    end = query.offset + len(ids)
    return json_reply(
        {
            "photos": [gallery.told(photo) for photo in ids],
            "total": len(gallery.ids),
            "offset": query.offset,
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


@router.get("/filters", responses={200: {"model": FilterValues}})
async def filter_values(request: Request) -> Response:
    """What there is to filter by: folders, each with what is below it, and cameras."""
    service = service_of(request)
    values = await service.in_thread(service.gallery.values)
    told = {kind: [{"value": v, "photos": n} for v, n in counts] for kind, counts in values.items()}
    return json_reply(told)


@router.get("/photos/{photo}/info", responses={200: {"model": PhotoInfo}})
async def photo_info(request: Request, photo: PhotoPath) -> Response:
    """What is known of a photo: when, where and by what camera it was taken, and the shots of its clip."""
    service = service_of(request)
    gallery = service.gallery
    known = await service.in_thread(gallery.known, photo)
    taken = known.get("taken")
    return json_reply(
        {
            **gallery.told(photo),
            "path": str(gallery.path(photo).absolute()) if service.options.local else None,
            "date": None if taken is None else wall_time(taken).isoformat(),
            "dated": bool(known.get("dated")),
            **{name: known.get(name) for name in _KNOWN},
            "shots": known["shots"],
        }
    )


@router.post("/photos/{photo}/reveal", responses={200: {"model": Status}})
async def reveal_photo(request: Request, photo: PhotoPath) -> Response:
    """Open the folder of a photo in the file manager of this machine; only for who uses it."""
    service = service_of(request)
    if not service.options.local:
        raise APIError(403, "not_local", "folders are opened for who uses the server's machine only")
    path = service.gallery.path(photo)
    await service.in_thread(reveal, path)
    return json_reply({"status": "opened"})


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
