//! Entry points for streams, events, graphs and launches.

use crate::codes;
use crate::context::put;
use crate::stream::{BYTES_OF_EVENT, BYTES_OF_NODE, Event, Graph, Node, Stream, Work};
use crate::world::within;
use std::ffi::{c_uint, c_ulonglong, c_void};

/// `CUevent_record_flags`
const RECORD_DEFAULT: c_uint = 0;
const RECORD_EXTERNAL: c_uint = 1;

#[unsafe(no_mangle)]
extern "C" fn cuStreamCreate(stream: *mut usize, _flags: c_uint) -> u32 {
    within(|w| {
        let handle = w.handle();
        w.streams.insert(handle, Stream::default());
        put(stream, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamDestroy_v2(stream: usize) -> u32 {
    within(|w| {
        w.wait_for(stream)?;
        w.streams.remove(&stream).map(|_| ()).ok_or(codes::INVALID_HANDLE)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamSynchronize(stream: usize) -> u32 {
    within(|w| w.wait_for(stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamWaitEvent(stream: usize, event: usize, _flags: c_uint) -> u32 {
    within(|w| {
        let number = w.events.get(&event).ok_or(codes::INVALID_HANDLE)?.recorded;
        w.hand(stream, Work::Wait { event, number })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventCreate(event: *mut usize, _flags: c_uint) -> u32 {
    within(|w| {
        w.take(BYTES_OF_EVENT)?;
        let handle = w.handle();
        w.events.insert(handle, Event::default());
        put(event, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventDestroy_v2(event: usize) -> u32 {
    within(|w| {
        w.events.remove(&event).ok_or(codes::INVALID_HANDLE)?;
        w.used -= BYTES_OF_EVENT;
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecord(event: usize, stream: usize) -> u32 {
    within(|w| w.record(event, stream))
}

#[unsafe(no_mangle)]
extern "C" fn cuEventRecordWithFlags(event: usize, stream: usize, flags: c_uint) -> u32 {
    within(|w| match flags {
        RECORD_DEFAULT => w.record(event, stream),
        RECORD_EXTERNAL => w.record_in_graph(event, stream),
        _ => Err(codes::INVALID_VALUE),
    })
}

/// An event is ready once somebody waited: this driver does nothing before.
#[unsafe(no_mangle)]
extern "C" fn cuEventQuery(event: usize) -> u32 {
    within(|w| {
        let e = w.events.get(&event).ok_or(codes::INVALID_HANDLE)?;
        if e.done == e.recorded {
            return Ok(());
        }
        // time goes on for who asks again and again
        let stream = e.stream;
        w.drain(stream, 1)?;
        Err(codes::NOT_READY)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventSynchronize(event: usize) -> u32 {
    within(|w| {
        let number = w.events.get(&event).ok_or(codes::INVALID_HANDLE)?.recorded;
        w.reach(event, number)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuEventElapsedTime(ms: *mut f32, begin: usize, end: usize) -> u32 {
    within(|w| {
        let mut times = [begin, end].into_iter().map(|e| {
            let e = w.events.get(&e).ok_or(codes::INVALID_HANDLE)?;
            if e.done < e.recorded { Err(codes::NOT_READY) } else { e.at.ok_or(codes::INVALID_HANDLE) }
        });
        let (Some(begin), Some(end)) = (times.next(), times.next()) else { return Err(codes::INVALID_VALUE) };
        let took = end?.saturating_sub(begin?);
        put(ms, took.as_secs_f32() * 1e3)
    })
}

/// # Safety
/// `params` has an address for each parameter of the kernel.
#[unsafe(no_mangle)]
#[allow(clippy::too_many_arguments, reason = "the driver's signature")]
unsafe extern "C" fn cuLaunchKernel(
    function: usize,
    grid_x: c_uint,
    grid_y: c_uint,
    grid_z: c_uint,
    block_x: c_uint,
    block_y: c_uint,
    block_z: c_uint,
    shared: c_uint,
    stream: usize,
    params: *const *const c_void,
    _extra: *const *const c_void,
) -> u32 {
    within(|w| {
        let function = w.functions.get(&function).ok_or(codes::INVALID_HANDLE)?.clone();
        let program = function.module.kernel(&function.name).map_err(|_| codes::INVALID_HANDLE)?;
        let (grid, block) = ([grid_x, grid_y, grid_z], [block_x, block_y, block_z]);
        let threads = block.iter().map(|b| u64::from(*b)).product::<u64>();
        if grid.contains(&0) || threads == 0 || threads > 1024 || grid_y > 65_535 || grid_z > 65_535 {
            return Err(codes::INVALID_VALUE);
        }
        let mut block_of_params = vec![0u8; program.param_bytes as usize];
        for (i, p) in program.params.iter().enumerate() {
            let to = &mut block_of_params[p.offset as usize..][..p.bytes as usize];
            // SAFETY: the caller's contract: the i-th address leads to the bytes of the i-th parameter.
            unsafe {
                let from = (*params.add(i)).cast::<u8>();
                to.as_mut_ptr().copy_from_nonoverlapping(from, to.len());
            }
        }
        let handed = w.streams.values().flat_map(|s| &s.work).filter(|w| matches!(w, Work::Launch { .. }));
        let number = w.launches + handed.count() as u64 + 1;
        if w.settings.refused == Some(number) {
            return Err(codes::LAUNCH_OUT_OF_RESOURCES);
        }
        w.hand(stream, Work::Launch { function, grid, block, shared, params: block_of_params })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamBeginCapture_v2(stream: usize, _mode: c_uint) -> u32 {
    within(|w| {
        let s = w.streams.get_mut(&stream).ok_or(codes::CAPTURE_UNSUPPORTED)?;
        if s.capture.is_some() {
            return Err(codes::CAPTURE_UNSUPPORTED);
        }
        s.capture = Some(Vec::new());
        Ok(())
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuStreamEndCapture(stream: usize, graph: *mut usize) -> u32 {
    within(|w| {
        let s = w.streams.get_mut(&stream).ok_or(codes::INVALID_HANDLE)?;
        let nodes = s.capture.take().ok_or(codes::INVALID_VALUE)?;
        let handle = w.handle();
        w.graphs.insert(handle, Graph { nodes, ..Graph::default() });
        put(graph, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphInstantiateWithFlags(exec: *mut usize, graph: usize, _flags: c_ulonglong) -> u32 {
    within(|w| {
        let nodes = w.graphs.get(&graph).ok_or(codes::INVALID_HANDLE)?.nodes.clone();
        if !w.settings.graphs {
            return Err(codes::OUT_OF_MEMORY);
        }
        let bytes = BYTES_OF_NODE * nodes.len() as u64;
        w.take(bytes)?;
        let handle = w.handle();
        w.graphs.insert(handle, Graph { nodes, launchable: true, bytes });
        put(exec, handle)
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphLaunch(exec: usize, stream: usize) -> u32 {
    within(|w| {
        let graph = w.graphs.get(&exec).filter(|g| g.launchable).ok_or(codes::INVALID_HANDLE)?;
        let nodes = graph.nodes.clone();
        nodes.into_iter().try_for_each(|node| match node {
            Node::Work(work) => w.hand(stream, work),
            Node::Record(event) => w.record(event, stream),
        })
    })
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphDestroy(graph: usize) -> u32 {
    within(|w| w.graphs.remove(&graph).map(|_| ()).ok_or(codes::INVALID_HANDLE))
}

#[unsafe(no_mangle)]
extern "C" fn cuGraphExecDestroy(exec: usize) -> u32 {
    within(|w| {
        w.wait_for_all()?;
        let graph = w.graphs.remove(&exec).ok_or(codes::INVALID_HANDLE)?;
        w.used -= graph.bytes;
        Ok(())
    })
}
