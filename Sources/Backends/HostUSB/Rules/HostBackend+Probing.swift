// SPDX-License-Identifier: Apache-2.0

internal import BackendKit
internal import Logging
internal import Platform
internal import USB

/// How a rule follows devices that come and go.
extension HostBackend {
    // MARK: - Coming

    /// Looks whether a device is there that the rule means, unless it has one.
    ///
    /// The kernel may still be busy with a device that just came, so names are read and nodes are
    /// opened first on the worker.
    func look() {
        guard bus != nil, current == nil else { return }
        if isLooking {
            looksAgain = true
            return
        }
        let names = candidates().map { HostDeviceName(bare: $0) }
        guard !names.isEmpty else { return findNothing() }
        isLooking = true
        lookout.run {
            names.map { name in
                SystemFiles.settle(name.node)
                return name.withWords()
            }
        } completion: { [weak self] names in
            self?.found(names)
        }
    }

    private func candidates() -> [LibUSBDevice] {
        context.devices().filter { device in
            !device.isHub && rule.mayMean(HostDeviceName(bare: device))
                && !leaving.contains { $0.node.identity == device.identity }
        }
    }

    private func found(_ names: [HostDeviceName]) {
        isLooking = false
        guard bus != nil else { return }
        let meant = names.filter { rule.means($0) }
        // It may have left meanwhile, or another one have come.
        let present = candidates().compactMap { node in
            meant.first { $0.bus == node.bus && $0.address == node.address }.map { (node, $0) }
        }
        if meant.count > 1 && starting != nil {
            fail(Diagnosis.ambiguous(rule, candidates: meant))
        } else if present.isEmpty {
            findNothing()
        } else {
            take(present)
        }
        lookAgain()
    }

    private func lookAgain() {
        guard looksAgain, !isLooking else { return }
        looksAgain = false
        look()
    }

    /// Takes the first device that is to be had: others may have the ones before it.
    private func take(_ present: [(node: LibUSBDevice, name: HostDeviceName)]) {
        isLooking = true
        let choices = present.map { (opener: $0.node.opener, name: $0.name) }
        lookout.run {
            FirstOpened(of: choices) { choice throws(OpeningError) in
                try HostDeviceSession.open(choice.opener, name: choice.name)
            }
        } completion: { [weak self] first in
            guard let self else { return }
            isLooking = false
            // The devices' references must outlive their opening.
            let (node, name) = present[first.index]
            if present.count > 1, case .success = first.result {
                logger.notice("\(rule) means \(present.count) devices; taking \(name.portRule)")
            }
            opened(node, name, first.result)
            lookAgain()
        }
    }

    private func opened(
        _ node: LibUSBDevice, _ name: HostDeviceName,
        _ result: Result<LibUSBHandle.Opened, OpeningError>
    ) {
        do throws(OpeningError) {
            let opened = try result.get()
            guard bus != nil, current == nil else { return opened.pointer.close() }
            // Nobody was told if it has left meanwhile, as nobody followed it yet.
            guard context.has(node) else {
                opened.pointer.close()
                return lost(name)
            }
            do throws(BackendError) { claim(try pass(node, name, opened)) } catch { fail(error) }
        } catch {
            guard bus != nil else { return }
            attempts += 1
            if error == .refused(.access), starting == nil, attempts < Self.patience {
                retry = loop.schedule(at: loop.now + Self.patienceStep) { [weak self] in
                    self?.look()
                }
            } else {
                fail(Diagnosis.cannotOpen(name, error))
            }
        }
    }

    /// Takes over, without waiting, what somebody else has opened.
    func adoptLater(_ descriptor: consuming OwnedDescriptor) {
        isLooking = true
        let number = descriptor.rawValue
        let passed = ReceivedDescriptor(descriptor)
        let wrapper = context.wrapper
        lookout.run {
            Result { () throws(LibUSBError) in try wrapper.wrap(number) }
        } completion: { [weak self] result in
            guard let self else { return }
            do throws(LibUSBError) {
                let pointer = try result.get()
                guard let node = context.device(of: pointer) else {
                    pointer.close()
                    throw .noDevice
                }
                name(node, isListed: context.has(node), pointer, number, passed)
            } catch {
                isLooking = false
                fail(Diagnosis.noNode(rule, error))
            }
        }
    }

    /// - Parameter isListed: libusb has found the device itself, and tells when it leaves.
    private func name(
        _ node: LibUSBDevice, isListed: Bool, _ pointer: LibUSBHandle.Pointer, _ number: CInt,
        _ passed: ReceivedDescriptor
    ) {
        let bare = HostDeviceName(bare: node)
        lookout.run {
            (bare.withWords(), ReceivedNode(number, path: bare.node))
        } completion: { [weak self] name, received in
            guard let self else { return }
            isLooking = false
            guard bus != nil else { return pointer.close() }
            guard !isListed || context.has(node) else {
                pointer.close()
                return lost(name)
            }
            do throws(BackendError) {
                claim(try adopt(node, name, pointer, received, passed))
            } catch {
                fail(error)
            }
        }
    }

    private func claim(_ device: HostDeviceSession) {
        current = device
        device.claim { [weak self] result in
            guard let self, current === device else { return }
            do throws(BackendError) {
                guard let bus else { return }
                try attach(device, to: bus, problems: result.get())
                logger.notice(
                    "\(rule): \(device.name.specification) (\(device.name.identity)) is plugged in")
                started()
            } catch {
                current = nil
                fail(error, givingBack: device)
                // There may be another one, which nobody else has interfaces of.
                look()
            }
        }
    }

    /// Plugs a device in whose interfaces are ours, all but those that have problems.
    func attach(
        _ device: HostDeviceSession, to bus: any USBBus, problems: [String]
    ) throws(BackendError) {
        for problem in problems {
            logger.warning("\(device.name.specification): \(problem); the guest cannot use it")
        }
        if let streams = device.device.offer.streams {
            logger.warning("\(device.name.specification): \(streams.words)")
        }
        device.device.whenLost = { [weak self, weak device] in
            if let self, let device { left(device) }
        }
        do throws(AttachError) {
            try bus.attach(device.device)
        } catch {
            throw BackendError(cannotAttach: "\(device.name.specification)", error)
        }
        isAttached = true
    }

    // MARK: - Going

    /// libusb has noticed that a device is not there any more.
    func departed(_ identity: LibUSBDevice.Identity) {
        if let current, current.node.identity == identity {
            if isAttached {
                current.device.deviceLeft()
            } else {
                left(current)
            }
        }
        forgetDeparted()
    }

    /// Keeps a device that is not followed any more until it is closed.
    func leave(_ device: HostDeviceSession) {
        leaving.append(device)
        device.whenClosed = { [weak self] in self?.forgetDeparted() }
    }

    /// Does the same with one that the kernel says has left, which it also says of transfers whose
    /// interface it has taken away. If it is still here after a moment, it may be taken anew.
    private func leaveForNow(_ device: HostDeviceSession) {
        leaving.append(device)
        device.whenClosed = { [weak self, weak device] in
            guard let self else { return }
            forgetDeparted()
            guard rule.isLasting, bus != nil else { return }
            returning = loop.schedule(at: loop.now + Self.patienceStep) { [weak self] in
                self?.leaving.removeAll { $0 === device }
                self?.look()
            }
        }
        device.giveBack { _ in }
    }

    private func forgetDeparted() {
        guard leaving.contains(where: \.isClosed) else { return }
        leaving.removeAll { $0.isClosed && !context.has($0.node) }
    }

    /// The device that the rule followed is not there any more.
    private func left(_ device: HostDeviceSession) {
        guard device === current else { return }
        current = nil
        isAttached = false
        if context.has(device.node) {
            leaveForNow(device)
        } else {
            leave(device)
            device.closeWhenIdle()
        }
        lost(device.name)
    }

    private func lost(_ device: HostDeviceName) {
        let name = "\(device.specification) (\(device.identity))"
        guard rule.isLasting else {
            if starting != nil { return fail(BackendError("\(name) is gone")) }
            logger.warning("\(name) is gone")
            return
        }
        logger.warning("\(name) is gone; \(rule) waits for it to come back")
        // Its successor may be here already.
        retry = loop.schedule(at: loop.now) { [weak self] in self?.look() }
        started()
    }
}

/// The first of several devices that can be opened; if none can, why not.
struct FirstOpened<Opened: Sendable>: Sendable {
    let index: Int
    let result: Result<Opened, OpeningError>

    /// - Parameter choices: one at least.
    init<Choice>(
        of choices: [Choice], opening: (Choice) throws(OpeningError) -> Opened
    ) {
        var failures: [(index: Int, error: OpeningError)] = []
        for (index, choice) in choices.enumerated() {
            do throws(OpeningError) {
                result = .success(try opening(choice))
                self.index = index
                return
            } catch {
                failures.append((index, error))
            }
        }
        // The permission may come yet; who has a device keeps it.
        let failure = failures.first { $0.error == .refused(.access) } ?? failures[0]
        (index, result) = (failure.index, .failure(failure.error))
    }
}
