// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Glibc
internal import Platform

/// libusb as a guest of the event loop: it is told when its descriptors are ready and never waits.
/// Devices are opened on workers, which changes what there is to watch.
///
/// Its callbacks run inside ``handleEvents(waiting:)``. They only note what happened; the notes are
/// acted on after libusb has returned, so that nothing calls into libusb from within it.
///
/// No transfer has a timeout, so there is no deadline of libusb's to keep.
@safe
final class LibUSBContext {
    /// When the loop is asked again to watch what it could not.
    static let retryStep = Duration.milliseconds(100)

    private let raw: OpaquePointer
    private let loop: any EventLoop
    private var watches: [(descriptor: CInt, watch: Watch)] = []
    /// While there is a descriptor that the loop could not watch.
    private var retry: Watch?
    /// libusb has more descriptors than before.
    private let additions: Mailbox<Void>
    private var delivery: Watch?
    /// Transfers whose callback has run, and the array that they are swapped with to be worked off.
    private var ended: [LibUSBTransfer] = []
    private var endedSpare: [LibUSBTransfer] = []
    private var departed: [LibUSBDevice.Identity] = []
    private var hasArrivals = false
    private var isHandlingEvents = false

    /// Called with each device that leaves the host.
    var whenDeparted: ((LibUSBDevice.Identity) -> Void)?
    /// Called when devices have come to the host.
    var whenArrived: (() -> Void)?

    init(loop: any EventLoop) throws(LibUSBError) {
        do { additions = try Mailbox() } catch { throw .noMemory }
        var context: OpaquePointer?
        try libusb { unsafe libusb_init(&context) }
        guard let context = unsafe context else { throw .notFound }
        unsafe raw = context
        self.loop = loop
        // From here on what is thrown is followed by the `deinit`, which ends libusb.
        do {
            delivery = try additions.deliver(on: loop) { [unowned self] in watchDescriptors() }
        } catch {
            throw .noMemory
        }
        unsafe libusb_set_pollfd_notifiers(
            raw,
            { _, _, context in unsafe LibUSBContext.from(context)?.additions.post(()) },
            // Whatever is closed, and whatever fails, does so on the loop.
            { descriptor, context in
                unsafe LibUSBContext.from(context)?.watches.removeAll {
                    $0.descriptor == descriptor
                }
            }, Unmanaged.passUnretained(self).toOpaque())
        watchDescriptors()
        watchDevices()
    }

    deinit {
        unsafe libusb_set_pollfd_notifiers(raw, nil, nil, nil)
        watches = []
        retry = nil
        delivery = nil
        unsafe libusb_exit(raw)
    }

    // MARK: - Devices

    /// The devices that the host has now, in the order of bus and address.
    func devices() -> [LibUSBDevice] {
        var list: UnsafeMutablePointer<OpaquePointer?>?
        let count = unsafe libusb_get_device_list(raw, &list)
        guard let list = unsafe list, count >= 0 else { return [] }
        defer { unsafe libusb_free_device_list(list, 1) }
        var devices: [LibUSBDevice] = []
        for index in 0..<count {
            if let device = unsafe list[index] {
                unsafe devices.append(LibUSBDevice(device, of: self))
            }
        }
        return devices.sorted { ($0.bus, $0.address) < ($1.bus, $1.address) }
    }

    /// Whether a device is still among them.
    func has(_ device: LibUSBDevice) -> Bool {
        devices().contains { $0.identity == device.identity }
    }

    /// What takes over opened devices, on any thread, for as long as there is the context.
    var wrapper: Wrapper { unsafe Wrapper(raw: raw) }

    @safe
    struct Wrapper: @unchecked Sendable {
        fileprivate let raw: OpaquePointer

        /// Takes over a device that somebody else has opened. The descriptor must stay open until the
        /// handle is closed. The device is asked for its configuration, which it may leave unanswered
        /// for a second.
        func wrap(_ descriptor: CInt) throws(LibUSBError) -> LibUSBHandle.Pointer {
            var handle: OpaquePointer?
            try libusb { unsafe libusb_wrap_sys_device(raw, Int(descriptor), &handle) }
            guard let handle = unsafe handle else { throw .noDevice }
            return unsafe LibUSBHandle.Pointer(raw: handle)
        }
    }

    /// The device that a handle is of. libusb knows one that was handed to it by its number alone. Its
    /// place, and its leaving, it tells of the same device among those that it has found itself.
    func device(of pointer: LibUSBHandle.Pointer) -> LibUSBDevice? {
        guard let raw = unsafe libusb_get_device(pointer.raw) else { return nil }
        let wrapped = unsafe LibUSBDevice(raw, of: self)
        return devices().first { $0.bus == wrapped.bus && $0.address == wrapped.address }
            ?? wrapped
    }

    // MARK: - Events

    /// Lets libusb reap what is ready, then ends the transfers concerned.
    ///
    /// - Parameter limit: how long to wait for the first event; only the end of the program, when
    ///   the loop no longer turns, waits at all.
    func handleEvents(waiting limit: Duration = .zero) {
        guard !isHandlingEvents else { return }
        isHandlingEvents = true
        defer { isHandlingEvents = false }
        var time = timeval(tv_sec: 0, tv_usec: suseconds_t(limit.nanoseconds / 1000))
        _ = unsafe libusb_handle_events_timeout_completed(raw, &time, nil)
        swap(&ended, &endedSpare)
        for transfer in endedSpare { transfer.whenEnded?() }
        endedSpare.removeAll(keepingCapacity: true)
        let left = departed
        departed = []
        for device in left { whenDeparted?(device) }
        guard hasArrivals else { return }
        hasArrivals = false
        whenArrived?()
    }

    /// Called by a transfer's callback; the transfer is finished after libusb has returned.
    func queueEnd(of transfer: LibUSBTransfer) { ended.append(transfer) }

    /// Watches what libusb has and is not watched yet.
    private func watchDescriptors() {
        guard let descriptors = unsafe libusb_get_pollfds(raw) else { return }
        var index = 0
        while let descriptor = unsafe descriptors[index] {
            let number = unsafe descriptor.pointee.fd
            if !watches.contains(where: { $0.descriptor == number }) {
                unsafe watch(number, events: descriptor.pointee.events)
            }
            index += 1
        }
        unsafe libusb_free_pollfds(descriptors)
    }

    private func watch(_ number: CInt, events: CShort) {
        var readiness: Readiness = []
        if CInt(events) & POLLIN != 0 { readiness.insert(.readable) }
        if CInt(events) & POLLOUT != 0 { readiness.insert(.writable) }
        // libusb owns the descriptor and tells before it closes it.
        let descriptor = OwnedDescriptor(owning: number)
        let watch = try? loop.watch(descriptor, for: readiness) { [unowned self] _ in
            handleEvents()
        }
        _ = descriptor.release()
        if let watch {
            watches.append((number, watch))
        } else if retry == nil {
            // All descriptors that the system watches count against one limit. Until there is room,
            // libusb is asked at times, so that transfers end.
            retry = loop.schedule(at: loop.now + Self.retryStep) { [unowned self] in
                retry = nil
                watchDescriptors()
                handleEvents()
            }
        }
    }

    private func watchDevices() {
        let context = unsafe Unmanaged.passUnretained(self).toOpaque()
        let any = CInt(LIBUSB_HOTPLUG_MATCH_ANY)
        let both =
            LIBUSB_HOTPLUG_EVENT_DEVICE_ARRIVED.rawValue | LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT.rawValue
        // Where the library has no hotplug support, a departure shows in the transfers alone.
        _ = unsafe libusb_hotplug_register_callback(
            raw, CInt(both), 0, any, any, any,
            { _, device, event, context in
                guard let device = unsafe device, let context = unsafe LibUSBContext.from(context)
                else { return 0 }
                if event == LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT {
                    unsafe context.departed.append(.init(device))
                } else {
                    context.hasArrivals = true
                }
                return 0
            }, context, nil)
    }

    private static func from(_ context: UnsafeMutableRawPointer?) -> LibUSBContext? {
        guard let context = unsafe context else { return nil }
        return unsafe Unmanaged<LibUSBContext>.fromOpaque(context).takeUnretainedValue()
    }
}
