// SPDX-License-Identifier: Apache-2.0

internal import CLibUSB
internal import Glibc
internal import Platform

/// A libusb context on the event loop: the loop watches libusb's descriptors, and libusb never
/// waits.
///
/// libusb's callbacks run inside ``handleEvents(waiting:)`` and only queue events. The queues are
/// emptied after libusb has returned, so no code calls libusb from within its callbacks.
///
/// No transfer has a timeout, so libusb has no deadlines.
@safe
final class LibUSBContext {
    /// The delay before descriptors that the loop could not watch are tried again.
    static let retryDelay = Duration.milliseconds(100)

    private let raw: OpaquePointer
    private let loop: any EventLoop
    private var watches: [(descriptor: CInt, watch: Watch)] = []
    /// The timer that retries descriptors that the loop could not watch.
    private var retry: Watch?
    /// Receives a message when libusb has more descriptors; another thread may have opened a
    /// device.
    private let newDescriptors: Mailbox<Void>
    private var delivery: Watch?
    /// Transfers whose callback has run.
    private var ended: [LibUSBTransfer] = []
    /// The array that is swapped with ``ended`` while its transfers are completed.
    private var endedSpare: [LibUSBTransfer] = []
    private var disconnected: [LibUSBDevice.ID] = []
    private var hasNewDevices = false
    private var isHandlingEvents = false
    private var observers: [WeakObserver] = []

    private struct WeakObserver {
        weak var observer: (any LibUSBContextObserver)?
    }

    init(loop: any EventLoop) throws(LibUSBError) {
        do { newDescriptors = try Mailbox() } catch { throw .noMemory }
        var context: OpaquePointer?
        try libusb { unsafe libusb_init(&context) }
        guard let context = unsafe context else { throw .notFound }
        unsafe raw = context
        self.loop = loop
        // From here on `deinit` calls libusb_exit, also if this initializer throws.
        do {
            delivery = try newDescriptors.deliver(on: loop) { [unowned self] in watchDescriptors() }
        } catch {
            throw .noMemory
        }
        unsafe libusb_set_pollfd_notifiers(
            raw,
            { _, _, context in unsafe LibUSBContext.from(context)?.newDescriptors.post(()) },
            // libusb calls this on the loop, because devices are closed only there.
            { descriptor, context in
                unsafe LibUSBContext.from(context)?.watches.removeAll {
                    $0.descriptor == descriptor
                }
            }, Unmanaged.passUnretained(self).toOpaque())
        watchDescriptors()
        registerHotplugCallback()
    }

    deinit {
        unsafe libusb_set_pollfd_notifiers(raw, nil, nil, nil)
        watches = []
        retry = nil
        delivery = nil
        unsafe libusb_exit(raw)
    }

    // MARK: - Devices

    /// The host's devices, by bus and address.
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

    /// Whether a device is still connected.
    func has(_ device: LibUSBDevice) -> Bool {
        devices().contains { $0.id == device.id }
    }

    /// Wraps devices that another process has opened. Usable on any thread while the context
    /// exists.
    var wrapper: Wrapper { unsafe Wrapper(raw: raw) }

    @safe
    struct Wrapper: @unchecked Sendable {
        fileprivate let raw: OpaquePointer

        /// Makes a handle of an open device node. The descriptor must stay open until the handle is
        /// closed. libusb reads the device's configuration, which may take a second.
        func wrap(_ descriptor: CInt) throws(LibUSBError) -> LibUSBHandle.Pointer {
            var handle: OpaquePointer?
            try libusb { unsafe libusb_wrap_sys_device(raw, Int(descriptor), &handle) }
            guard let handle = unsafe handle else { throw .noDevice }
            return unsafe LibUSBHandle.Pointer(raw: handle)
        }
    }

    /// The device of a handle.
    ///
    /// libusb knows only bus and address of a wrapped device. In its own list the same device has a
    /// port path and is reported when it disconnects, so this returns the listed one if there is
    /// one.
    func device(of pointer: LibUSBHandle.Pointer) -> LibUSBDevice? {
        guard let raw = unsafe libusb_get_device(pointer.raw) else { return nil }
        let wrapped = unsafe LibUSBDevice(raw, of: self)
        return devices().first { $0.bus == wrapped.bus && $0.address == wrapped.address }
            ?? wrapped
    }

    // MARK: - Observers

    /// Adds an observer of devices that connect and disconnect; the context does not retain it.
    func addObserver(_ observer: any LibUSBContextObserver) {
        removeObserver(observer)
        observers.append(WeakObserver(observer: observer))
    }

    func removeObserver(_ observer: any LibUSBContextObserver) {
        observers.removeAll { $0.observer == nil || $0.observer === observer }
    }

    // MARK: - Events

    /// Lets libusb reap completed requests, then completes their transfers and notifies observers.
    ///
    /// - Parameter limit: the longest time to wait for the first event; not 0 only in code that
    ///   blocks the loop at the end of the program.
    func handleEvents(waiting limit: Duration = .zero) {
        guard !isHandlingEvents else { return }
        isHandlingEvents = true
        defer { isHandlingEvents = false }
        var time = timeval(tv_sec: 0, tv_usec: suseconds_t(limit.nanoseconds / 1000))
        _ = unsafe libusb_handle_events_timeout_completed(raw, &time, nil)
        swap(&ended, &endedSpare)
        for transfer in endedSpare { transfer.whenEnded?() }
        endedSpare.removeAll(keepingCapacity: true)
        let disconnected = disconnected
        self.disconnected = []
        for device in disconnected {
            for entry in observers { entry.observer?.deviceDisconnected(device) }
        }
        guard hasNewDevices else { return }
        hasNewDevices = false
        for entry in observers { entry.observer?.devicesConnected() }
    }

    /// Queues a transfer whose callback has run; it is completed after libusb has returned.
    func queueEnd(of transfer: LibUSBTransfer) { ended.append(transfer) }

    /// Watches the descriptors of libusb that are not watched yet.
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
        // libusb owns the descriptor and calls the notifier before it closes it.
        let descriptor = OwnedDescriptor(owning: number)
        let watch = try? loop.watch(descriptor, for: readiness) { [unowned self] _ in
            handleEvents()
        }
        _ = descriptor.release()
        if let watch {
            watches.append((number, watch))
        } else if retry == nil {
            // The number of watched descriptors is limited for all programs of the user. Until the
            // loop can watch this one, polling libusb's events makes transfers complete.
            retry = loop.schedule(at: loop.now + Self.retryDelay) { [unowned self] in
                retry = nil
                watchDescriptors()
                handleEvents()
            }
        }
    }

    private func registerHotplugCallback() {
        let context = unsafe Unmanaged.passUnretained(self).toOpaque()
        let any = CInt(LIBUSB_HOTPLUG_MATCH_ANY)
        let both =
            LIBUSB_HOTPLUG_EVENT_DEVICE_ARRIVED.rawValue | LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT.rawValue
        // Without hotplug support in libusb, only the device's transfers show a disconnection.
        _ = unsafe libusb_hotplug_register_callback(
            raw, CInt(both), 0, any, any, any,
            { _, device, event, context in
                guard let device = unsafe device, let context = unsafe LibUSBContext.from(context)
                else { return 0 }
                if event == LIBUSB_HOTPLUG_EVENT_DEVICE_LEFT {
                    unsafe context.disconnected.append(.init(device))
                } else {
                    context.hasNewDevices = true
                }
                return 0
            }, context, nil)
    }

    private static func from(_ context: UnsafeMutableRawPointer?) -> LibUSBContext? {
        guard let context = unsafe context else { return nil }
        return unsafe Unmanaged<LibUSBContext>.fromOpaque(context).takeUnretainedValue()
    }
}

/// An observer of the host's devices; called on the event loop.
protocol LibUSBContextObserver: AnyObject {
    /// Devices have been connected to the host.
    func devicesConnected()

    /// A device has been disconnected from the host.
    func deviceDisconnected(_ device: LibUSBDevice.ID)
}
