//! Encoded images to pixels, as ONNX's ImageDecoder defines them: the one decoder behind the host function of the
//! runtime and of the reference interpreter.
//!
//! The formats are the seven of the operator. Transparency is dropped, palettes and grey images become what
//! is asked for, 16-bit samples become 8-bit ones.

use image::ImageDecoder as _;
use libjpeg_turbo_rs::{Decoder, PixelFormat};
use std::io::Cursor;
use thiserror::Error;

/// Order of the channels.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pixels {
    Rgb,
    Bgr,
    /// Luma by ITU-R 601, rounded to nearest.
    Grey,
}

/// Row-major samples [height, width, channels].
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Image {
    pub height: usize,
    pub width: usize,
    pub data: Vec<u8>,
}

/// Why there are no pixels.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum ImageError {
    #[error("the file is no JPEG, JPEG 2000, PNG, BMP, TIFF, WebP or PNM image")]
    Format,
    #[error("{format}: {message}")]
    Broken { format: &'static str, message: String },
    #[error("an image of {height} x {width} needs more than {limit} bytes")]
    Limit { height: u64, width: u64, limit: u64 },
}

/// Decodes a file in memory; no allocation for samples is larger than `limit` bytes.
pub fn decode(file: &[u8], pixels: Pixels, limit: u64) -> Result<Image, ImageError> {
    let rgb = match file {
        [0xff, 0xd8, 0xff, ..] => jpeg(file, limit)?,
        [0, 0, 0, 0x0c, b'j', b'P', ..] | [0xff, 0x4f, 0xff, 0x51, ..] => jpeg2000(file, limit)?,
        _ => others(file, limit)?,
    };
    Ok(match pixels {
        Pixels::Rgb => rgb,
        Pixels::Bgr => {
            let data = rgb.data.as_chunks().0.iter().flat_map(|&[r, g, b]| [b, g, r]).collect();
            Image { data, ..rgb }
        }
        Pixels::Grey => {
            let luma = |&[r, g, b]: &[u8; 3]| {
                let sum = u32::from(r) * 19595 + u32::from(g) * 38470 + u32::from(b) * 7471;
                ((sum + (1 << 15)) >> 16) as u8
            };
            Image { data: rgb.data.as_chunks().0.iter().map(luma).collect(), ..rgb }
        }
    })
}

/// Checks the size that a header claims before anything is allocated for it.
fn fits(height: u64, width: u64, limit: u64) -> Result<(), ImageError> {
    match height.checked_mul(width).and_then(|n| n.checked_mul(4)) {
        Some(n) if n <= limit => Ok(()),
        _ => Err(ImageError::Limit { height, width, limit }),
    }
}

fn broken(format: &'static str, e: impl ToString) -> ImageError {
    ImageError::Broken { format, message: e.to_string() }
}

fn jpeg(file: &[u8], limit: u64) -> Result<Image, ImageError> {
    let fault = |e: libjpeg_turbo_rs::JpegError| broken("JPEG", e);
    let mut decoder = Decoder::new(file).map_err(fault)?;
    let header = decoder.header();
    fits(header.height.into(), header.width.into(), limit)?;
    decoder.set_output_format(PixelFormat::Rgb);
    let image = decoder.decode_image().map_err(fault)?;
    Ok(Image { height: image.height, width: image.width, data: image.data })
}

fn jpeg2000(file: &[u8], limit: u64) -> Result<Image, ImageError> {
    let fault = |e: hayro_jpeg2000::error::DecodeError| broken("JPEG 2000", e);
    let image = hayro_jpeg2000::Image::new(file, &Default::default()).map_err(fault)?;
    let (height, width) = (image.height() as usize, image.width() as usize);
    fits(height as u64, width as u64, limit)?;
    let mut context = Default::default();
    let decoded = image.decode(&mut context).map_err(fault)?;
    let (samples, channels) = (decoded.data_u8(), decoded.components().len());
    let data = match channels {
        1 | 2 => samples.chunks_exact(channels).flat_map(|p| [p[0]; 3]).collect(),
        3 | 4 => samples.chunks_exact(channels).flat_map(|p| [p[0], p[1], p[2]]).collect(),
        n => return Err(broken("JPEG 2000", format!("{n} components"))),
    };
    Ok(Image { height, width, data })
}

fn others(file: &[u8], limit: u64) -> Result<Image, ImageError> {
    let mut reader =
        image::ImageReader::new(Cursor::new(file)).with_guessed_format().map_err(|_| ImageError::Format)?;
    reader.format().ok_or(ImageError::Format)?;
    let mut limits = image::Limits::default();
    limits.max_alloc = Some(limit);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(|e| broken("image", e))?;
    let (width, height) = decoder.dimensions();
    fits(height.into(), width.into(), limit)?;
    let rgb = image::DynamicImage::from_decoder(decoder).map_err(|e| broken("image", e))?.into_rgb8();
    Ok(Image { height: height as usize, width: width as usize, data: rgb.into_raw() })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PNM: &[u8] = b"P6\n2 1\n255\n\x01\x02\x03\xff\x80\x00";

    #[test]
    fn channels_are_in_the_order_asked_for() {
        let get = |p| decode(PNM, p, 1 << 20).unwrap();
        assert_eq!(get(Pixels::Rgb), Image { height: 1, width: 2, data: vec![1, 2, 3, 255, 128, 0] });
        assert_eq!(get(Pixels::Bgr).data, [3, 2, 1, 0, 128, 255]);
        // 0.299 R + 0.587 G + 0.114 B
        assert_eq!(get(Pixels::Grey).data, [2, 151]);
    }

    #[test]
    fn what_is_no_image_or_too_large_is_an_error() {
        assert_eq!(decode(b"", Pixels::Rgb, 1 << 20), Err(ImageError::Format));
        assert_eq!(decode(b"hello", Pixels::Rgb, 1 << 20), Err(ImageError::Format));
        assert!(matches!(
            decode(PNM, Pixels::Rgb, 7),
            Err(ImageError::Limit { .. } | ImageError::Broken { .. })
        ));
        let headers: [&[u8]; 5] = [
            b"\xff\xd8\xff\xe0\x00\x10JFIF",
            b"\x00\x00\x00\x0cjP  \r\n\x87\n",
            b"\x89PNG\r\n\x1a\n",
            b"P6\n99999999 99999999\n255\n",
            b"RIFF \x02\x00\x00WEBP",
        ];
        for h in headers {
            assert!(decode(h, Pixels::Rgb, 1 << 20).is_err(), "{h:?}");
        }
    }
}
